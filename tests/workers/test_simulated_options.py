"""The simulated engine's command line."""

import pytest
from penstock.workers.shell.simulated.options import WITHOUT_EFFECT, parse_options

BASE = ["--served-model-name", "m", "--profile", '{"prefill":[1,0,0],"decode":[1,0,0]}']


def test_vllms_spellings():
    options = parse_options([*BASE, "--max_model_len=64", "--max-num-seqs", "3", "--no-enable-prefix-caching"], {})
    assert (options.max_model_len, options.max_num_seqs, options.prefix_caching) == (64, 3, False)


def test_several_served_names():
    assert parse_options([*BASE[2:], "--served-model-name", "a", "b"], {}).names == ("a", "b")


@pytest.mark.parametrize("flag", WITHOUT_EFFECT)
def test_vllms_other_flags_are_accepted_and_told(flag):
    options = parse_options([*BASE, flag, "--max-model-len", "64", f"{flag}=1"], {})
    assert options.ignored == (flag, f"{flag}=1")
    assert options.max_model_len == 64


def test_values_of_flags_without_effect_are_dropped_with_them():
    assert parse_options([*BASE, "--dtype", "auto", "--swap-space", "4"], {}).ignored == ("--dtype", "--swap-space")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-model-length", "9"], "--max-model-length"),
        (["stray"], "stray"),
        (["--max-model-len", "0"], "at least 1"),
        (["--time-scale", "0"], "above 0"),
        (["--profile", "{"], ""),
        (["--profile", '{"prefill":[1,0,0]}'], "decode"),
        (["--fault", "explode"], "explode"),
        (["--kv-events-config", "x"], "not JSON"),
        (["--kv-events-config", "[]"], "JSON object"),
        (["--num-gpu-blocks-override", "10", "--max-model-len", "161"], "KV cache holds 160 tokens"),
    ],
)
def test_wrong_command_lines_end_with_a_sentence(arguments, words, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_options([*BASE, *arguments], {})
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_the_environment():
    env = {
        "VLLM_HOST_IP": "10.1.2.3",
        "VLLM_NIXL_SIDE_CHANNEL_PORT": "5700",
        "PENSTOCK_FAULT": "slow=3",
        "PENSTOCK_ENABLE_FAULTS": "true",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "9",
    }
    options = parse_options(BASE, env)
    assert (options.side_channel_host, options.side_channel_port) == ("10.1.2.3", 5700)
    assert (options.faults.slow, options.enable_faults, options.keep_alive_s) == (3.0, True, 9.0)
    assert not parse_options(BASE, {}).enable_faults


def test_adapters_at_run_time_need_both_switches():
    env = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    assert parse_options([*BASE, "--enable-lora"], env).runtime_lora
    assert not parse_options(BASE, env).runtime_lora
    assert not parse_options([*BASE, "--enable-lora"], {}).runtime_lora


def test_only_nixl_is_simulated():
    nixl = parse_options([*BASE, "--kv-transfer-config", '{"kv_connector":"NixlConnector"}'], {})
    assert nixl.kv_transfer == {"kv_connector": "NixlConnector"}
    other = parse_options([*BASE, "--kv-transfer-config", '{"kv_connector":"OffloadingConnector"}'], {})
    assert other.kv_transfer is None
    assert other.ignored == ("--kv-transfer-config OffloadingConnector",)


def test_the_context_is_what_the_cache_holds_unless_said():
    assert parse_options([*BASE, "--num-gpu-blocks-override", "10"], {}).max_model_len == 160
    assert parse_options(BASE, {}).max_model_len == 131_072
