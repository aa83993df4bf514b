"""Why a prompt's tokens cannot be told: the request is at fault, the model's files are, or nobody here can know."""


class PromptError(ValueError):
    """The request's prompt is wrong; an engine would refuse it too. The message says which field and what to send."""


class TokensUnknown(Exception):
    """The engine may serve this prompt, but what it makes of it cannot be computed here; the message says why."""

    reason = "OnlyTheEngine"
    """One word for metrics: why tokens are unknown."""


class ModelFilesError(ValueError):
    """A model's tokenizer files cannot be used; the message says which file, what is wrong and what to do."""


class TemplateError(TokensUnknown):
    """A chat template cannot be compiled, fails while it renders, or exceeds what rendering may cost."""

    reason = "TemplateFailed"
