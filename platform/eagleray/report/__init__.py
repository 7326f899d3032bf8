"""Turn records into a leaderboard, a finding, pictures and the pages of all methods and metrics."""
