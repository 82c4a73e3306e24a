"""Predicts time and memory of a run, by compiling its programs for chips that need not be here."""
