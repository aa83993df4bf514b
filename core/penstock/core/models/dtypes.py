"""Number formats and what one value costs in memory: weights and KV cache are sized in these."""

from __future__ import annotations

from enum import Enum

__all__ = ["DType"]


class DType(Enum):
    """A number format; the value is the average size in bytes of one number, block scales included."""

    # Two formats of one size are two members of an Enum only if their values differ, hence the pairs.
    FP32 = ("fp32", 4.0)
    BF16 = ("bf16", 2.0)
    FP16 = ("fp16", 2.0)
    FP8 = ("fp8", 1.0)
    INT8 = ("int8", 1.0)
    INT4 = ("int4", 0.5)
    MXFP4 = ("mxfp4", 0.53125)  # OCP MX: blocks of 32 four-bit values share one 8-bit scale: 4.25 bits a value.

    @property
    def label(self) -> str:
        """The short name this format has everywhere in Penstock."""
        return self.value[0]

    @property
    def bytes_per_value(self) -> float:
        """Average bytes of one number."""
        return self.value[1]

    @property
    def is_eight_bit_float(self) -> bool:
        """Whether fp8 tensor cores can multiply it as it is."""
        return self is DType.FP8

    @classmethod
    def parse(cls, name: str | DType) -> DType:
        """The format of a vLLM or PyTorch name (`bfloat16`, `torch.float16`, `fp8_e4m3`).

        Raises ValueError, naming the formats known, for anything else (`auto` included: only the caller
        knows what it stands for).
        """
        if isinstance(name, DType):
            return name
        key = name.lower().removeprefix("torch.")
        try:
            return _NAMES[key]
        except KeyError:
            raise ValueError(f"unknown number format {name!r}; use one of {', '.join(sorted(_NAMES))}") from None


_NAMES = {dtype.label: dtype for dtype in DType} | {
    "float32": DType.FP32,
    "float": DType.FP32,
    "bfloat16": DType.BF16,
    "float16": DType.FP16,
    "half": DType.FP16,
    "fp8_e4m3": DType.FP8,
    "fp8_e5m2": DType.FP8,
    "float8_e4m3fn": DType.FP8,
    "awq": DType.INT4,
    "gptq": DType.INT4,
}
