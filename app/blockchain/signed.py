"""What a signed transaction of ours says, read back from its bytes."""

from typing import Final

import rlp

from app.blockchain.signer import Action, Authorization

# Where `to` stands in the fields of each type; `value` and `data` follow it, a type 4 has its authorizations after the
# access list (EIP-1559, EIP-7702). A legacy transaction has no type: it begins as an RLP list, 0xc0 or more.
_PLACE_OF_TO: Final = {2: 5, 4: 5}
_LEGACY_PLACE: Final = 3
_FIRST_LIST_BYTE: Final = 0xC0


def action_of(raw: bytes) -> Action:
    """What was signed: to sign it again at another price. Raises KeyError for a type that we never sign."""
    kind = None if raw[0] >= _FIRST_LIST_BYTE else raw[0]
    fields = rlp.decode(raw if kind is None else raw[1:])
    place = _LEGACY_PLACE if kind is None else _PLACE_OF_TO[kind]
    to, value, data = fields[place : place + 3]
    authorizations = fields[place + 4] if kind == 4 else []
    return Action(to, _number(value), data, tuple(map(_authorization, authorizations)))


def _authorization(fields: list[bytes]) -> Authorization:
    chain_id, delegate, nonce, y_parity, r, s = fields
    return Authorization(_number(chain_id), delegate, _number(nonce), _number(y_parity), _number(r), _number(s))


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")
