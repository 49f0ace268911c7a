"""Files that host and device share, each read with distrust of what it says."""
