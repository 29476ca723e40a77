"""The truth: every request, claim, version, promotion and audit event is a row here."""
