"""Turn records into reports.

A report has a leaderboard, a finding and pictures; the pages of all methods and metrics are made here too.
"""
