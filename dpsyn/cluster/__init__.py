"""A run on many machines, by Ray: nothing here is imported before `runtime=ray` asks for it."""
