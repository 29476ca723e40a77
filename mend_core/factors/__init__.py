"""Factor rows: extraction, exact accumulation, composition, storage and export."""
