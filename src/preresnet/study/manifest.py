"""The file that says how far a study is."""

STUDY_FILE = "study.json"
