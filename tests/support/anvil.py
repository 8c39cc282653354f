"""The tests' node is the devnet's."""

from devnet.anvil import MNEMONIC, REPO_ROOT, Anvil, AnvilError, anvil_binary, encode_call, load_artifact

__all__ = ["MNEMONIC", "REPO_ROOT", "Anvil", "AnvilError", "anvil_binary", "encode_call", "load_artifact"]
