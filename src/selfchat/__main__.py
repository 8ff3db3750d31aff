"""`python -m selfchat` is the `selfchat` command."""

from selfchat.cli import main

main()
