"""The bodies of commands in one folder per subject. Their modules load when they are used."""
