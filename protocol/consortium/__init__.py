"""Who belongs to a consortium: identities, the members' roster, and what enrolment signs."""
