"""Offer what the other floors do as commands; heavy modules are imported where they are used.

calibrate.py  rasalore calibrate
convert.py    rasalore convert-released, rasalore export
demo.py       rasalore demo
importing.py  imports without delay
inspect.py    rasalore inspect
label.py      rasalore label
phantom.py    rasalore phantom
places.py     where results go where nobody says so
predict.py    rasalore predict
saying.py     what commands print, and how they end
train.py      rasalore train
words.py      options that several commands share
"""
