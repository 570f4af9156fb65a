"""Tell a brain from the rest of a head and from what is none, and recognise its sequence.

anatomy.py     figures of a scan's shape: a brain alone, a head, or no brain
choice.py      which model of the package reads the scans that are given
extractors.py  programs of others that extract the brain of a head
masks.py       masks of brains beside their scans, and what they leave
reading.py     a scan with nothing but its brain, its sequence told
sequences.py   the sequence of a brain by how it looks; sequences.json is its table
"""
