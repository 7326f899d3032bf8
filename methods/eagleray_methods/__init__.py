"""The methods, one a file; the file name is the method's name everywhere."""
