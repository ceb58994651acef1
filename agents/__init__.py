"""The agents, one module each: `Config`, `State`, `init`, `act`, `update`. The folder is the list."""
