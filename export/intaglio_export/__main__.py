"""`python -m intaglio_export SOURCE -o BUNDLE`: the export command on its own."""

from intaglio_export.cli import main

main()
