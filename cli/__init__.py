"""The command line of cachekd; installed as the package ``cachekd_cli``."""
