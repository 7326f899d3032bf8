"""The methods, one in each file; the file name is the method's name everywhere."""
