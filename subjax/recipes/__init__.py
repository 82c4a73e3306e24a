"""What is trained from what: what students learn (`targets`), which weights (`tunings`)."""
