"""Files and folders: fetched, changed as a whole, known as ours."""
