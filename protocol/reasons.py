"""Reason codes: the only words about a failure that may cross the wire or enter a report.

A code names the kind of failure, never its content, so that neither side can leak a document or a
machine's layout through an error text.
"""

from __future__ import annotations

from enum import StrEnum


class RefusalReason(StrEnum):
    """Why a site did not do what it was asked."""

    MALFORMED_REQUEST = "malformed_request"
    WRONG_VERSION = "wrong_version"
    WRONG_LAYOUT = "wrong_layout"
    BASE_MODEL_DIFFERS = "base_model_differs"
    CODE_DIFFERS = "code_differs"
    NO_DATA = "no_data"
    UNKNOWN_LABELS = "unknown_labels"
    POLICY = "policy"
    OUTSIDE_HOURS = "outside_hours"
    CONSENT_PENDING = "consent_pending"
    CONSENT_DENIED = "consent_denied"
    TIME_LIMIT = "time_limit"
    BUDGET_SPENT = "budget_spent"
    LEDGER_BROKEN = "ledger_broken"
    NO_MATTERS = "no_matters"
    PRIVATE_TRAINING = "private_training"
    UNKNOWN_MEMBER = "unknown_member"
    BAD_SIGNATURE = "bad_signature"
    COHORT_TOO_SMALL = "cohort_too_small"
    WRONG_PHASE = "wrong_phase"
    TRAINING_DIVERGED = "training_diverged"
    EGRESS = "egress"
    INTERNAL = "internal"


class RejectionReason(StrEnum):
    """Why the coordinator set a reply aside."""

    ERROR_REPLY = "error_reply"
    REFUSED_BY_SITE = "refused_by_site"
    MALFORMED = "malformed"
    WRONG_VERSION = "wrong_version"
    WRONG_RUN = "wrong_run"
    WRONG_ROUND = "wrong_round"
    WRONG_LAYOUT = "wrong_layout"
    WRONG_SHAPE = "wrong_shape"
    WRONG_DTYPE = "wrong_dtype"
    NOT_FINITE = "not_finite"
    BAD_WEIGHT = "bad_weight"
    NORM_OVER_BOUND = "norm_over_bound"
    DUPLICATE = "duplicate"
    UNASKED = "unasked"
    UNKNOWN_MEMBER = "unknown_member"
    BAD_SIGNATURE = "bad_signature"
    WRONG_PHASE = "wrong_phase"
