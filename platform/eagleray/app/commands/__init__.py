"""The commands, by what they are for; `app.cli` imports them all."""
