"""Study the whole line, from scans and labels to a judged model, in one process.

curve.py          what more labelled patients bring: one study after the other, and a figure
delivery.py       the model folder that a study ends in: calibrated, with card, scores and picture
judging.py        what judges the networks of a study
package_start.py  the package's own weights, as a run to start from
recipe.py         what a study asks for
report.py         the page about a study, and the sentence that says whether labels helped
sharing.py        who is learned from, who chooses, who is tested
steps.py          the steps of a study, and one split of its scans
study.py          their order
survey.py         what a folder of scans holds, and whether it can be learned from
timing.py         how long a study will take, by a few measured steps
"""
