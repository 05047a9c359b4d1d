"""One suite for each kind of backend, to be run on every backend there is; a third party subclasses them likewise."""
