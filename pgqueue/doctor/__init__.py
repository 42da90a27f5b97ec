"""What is wrong with a server, a schema or a set of workers, and what to do about it: ``pgqueue doctor``. Changes nothing."""
