"""Offer what the other floors do as commands; heavy modules are imported where they are used.

calibrate.py  rasalore calibrate
convert.py    rasalore convert-released, rasalore export
inspect.py    rasalore inspect
phantom.py    rasalore phantom
predict.py    rasalore predict
saying.py     what commands print, and how they end
train.py      rasalore train
words.py      options that several commands share
"""
