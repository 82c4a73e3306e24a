"""What a run takes before it is run: programs compiled for chips that need not be here."""
