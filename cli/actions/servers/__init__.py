"""Actions on servers: `serve`, `playground`, `up`, `down`, `status`, `ui`."""
