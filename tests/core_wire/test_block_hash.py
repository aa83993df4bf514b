"""Block hashes: equal to what an independent CBOR encoder and SHA-256 give, and chained as the engine chains them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.core.wire import chain_hashes, root_hash, to_integer

# Made with cbor2 5.x: H(o) = sha256(cbor2.dumps(o, canonical=True)), chained over (parent, ids, extra).
IDS = [
    *(23, 65536, 2147483648, 2147483648, 5, 200, 5, 4000, 2147483648, 4000, 4000, 128255, 256, 2147483648, 24, 5),
    *(4000, 0, 256, 256, 65536, 2147483648, 2147483648, 0, 200000, 4000, 200, 200000, 2147483648, 24, 65536, 5),
    *(255, 0, 0, 0, 128255, 65535, 0, 256, 128255, 24, 256, 200000, 0, 65535, 24, 2147483648),
    *(4000, 4000, 65535, 24, 255, 24, 128255, 24, 2147483648, 4000, 200, 0, 256, 65535, 128255, 5),
    *(23, 128255, 200000, 200, 5, 200000),
]
PLAIN_16 = [
    "423e64a00c46aee05bfe9bc22a58f7a29594ccece6975666edb4c59fa98135c9",
    "91b40b019038bbfe2243937e5e4662ddbe7223e827a481d9d15b257c9645f698",
    "d7c326f55d7218d8b69fce3ebc973409eb7881f0a4befdd32c3d42009665ec98",
    "067e10bf1f78eaffdcdfb6cedd36f71b94e53acafada27a683327332792df18f",
]
PLAIN_16_INTEGERS = [17128532572331128265, 15085692593834948248, 3187776681538874520, 9453745228422705551]
SALTED_32 = [
    "875e275bba9486616f6bddf0b57130093ca68945b22b6d0c3a8508863b542213",
    "a578f941885e8af5ac4a831d901da835a48d11fc5f2a89e7c2adc9d42ee9d5a0",
]
ADAPTER_32 = [
    "3f5eeb793bc0296e5ccfe4603d0c2e3797368e498dff47139ec353e89ad4d08f",
    "2c4d346c5213c257c206b8ff4387b724d6c3b87a380c4ca8d0ff38d2b6af230a",
]
SEED_ZERO_32 = "6e9644b8d1d296be25120adfef519087e38183d81d0854d42e693f9088c89d0c"


def test_plain_chain_equals_the_reference():
    hashes = chain_hashes(IDS, 16)
    assert [h.hex() for h in hashes] == PLAIN_16
    assert [to_integer(h) for h in hashes] == PLAIN_16_INTEGERS


def test_salt_enters_the_first_block_only():
    assert [h.hex() for h in chain_hashes(IDS, 32, salt="tenantA")] == SALTED_32
    salted, plain = chain_hashes(IDS[:64], 32, salt="tenantA"), chain_hashes(IDS[:64], 32)
    assert salted[1:] == chain_hashes(IDS[32:64], 32, parent=salted[0])
    assert salted[1] != plain[1]


def test_adapter_enters_every_block():
    assert [h.hex() for h in chain_hashes(IDS, 32, adapter=("styleA", "/adapters/styleA"))] == ADAPTER_32


def test_another_seed_starts_another_chain():
    assert chain_hashes(IDS, 32, parent=root_hash("0"))[0].hex() == SEED_ZERO_32


@given(st.lists(st.integers(0, 2**32 - 1), max_size=80), st.integers(1, 33))
def test_only_whole_blocks_have_hashes(ids, size):
    assert len(chain_hashes(ids, size)) == len(ids) // size


@given(st.lists(st.integers(0, 200_000), min_size=32, max_size=96), st.integers(0, 5))
def test_a_chain_continues_where_it_was_cut(ids, cut):
    whole = chain_hashes(ids, 8)
    cut = min(cut, len(whole))
    parent = whole[cut - 1] if cut else None
    assert whole[cut:] == chain_hashes(ids[cut * 8 :], 8, parent=parent)


@given(st.lists(st.integers(0, 200_000), min_size=16, max_size=64), st.data())
def test_one_changed_token_changes_its_block_and_every_later_one(ids, data):
    place = data.draw(st.integers(0, len(ids) // 8 * 8 - 1))
    other = [*ids[:place], ids[place] + 1, *ids[place + 1 :]]
    before, after = chain_hashes(ids, 8), chain_hashes(other, 8)
    changed = [a != b for a, b in zip(before, after, strict=True)]
    assert changed == [index >= place // 8 for index in range(len(before))]


def test_an_id_beyond_cbor_is_refused():
    with pytest.raises(ValueError, match="64-bit"):
        chain_hashes([2**64], 1)
