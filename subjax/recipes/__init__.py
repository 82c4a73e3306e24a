"""What is trained from what: `bases`, `teachers`, what students learn (`targets`).

And which weights both finetune (`tunings`). Each module has one table, name -> object; no other
module compares those names.
"""
