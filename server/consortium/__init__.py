"""The consortium's folder at the coordinator: its keys and certificates, and who is a member."""
