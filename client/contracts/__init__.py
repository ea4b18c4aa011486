"""Contracts on disk, in whatever state, as `Contract` records and a report of what was not read."""

from client.contracts.clauses import Clause, split_clauses
from client.contracts.contract import (
    BROKEN_SIDECAR,
    EXCLUDED_MATTER,
    LINKED_ELSEWHERE,
    NO_CONSENT,
    ChatMessage,
    Contract,
    ContractsError,
    ReadResult,
    Unreadable,
)
from client.contracts.folder import SUPPORTED, read_contract_file, read_contracts
from client.contracts.jsonl import Record, read_records

__all__ = [
    "BROKEN_SIDECAR",
    "EXCLUDED_MATTER",
    "LINKED_ELSEWHERE",
    "NO_CONSENT",
    "SUPPORTED",
    "ChatMessage",
    "Clause",
    "Contract",
    "ContractsError",
    "ReadResult",
    "Record",
    "Unreadable",
    "read_contract_file",
    "read_contracts",
    "read_records",
    "split_clauses",
]
