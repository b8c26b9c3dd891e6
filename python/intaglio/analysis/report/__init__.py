"""The report: its page, its plots and the files in its folder."""
