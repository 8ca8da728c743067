"""Networks: where they run, how their files are fetched and kept."""
