"""What came from the sites: the coordinator's own record, and receipts signed by both sides."""
