"""What every room needs: records, rows, files, run directories, errors; imports nothing of ours."""
