"""Reading edit data into one record type."""
