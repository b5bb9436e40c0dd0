from weaver.compat.tinker.exceptions import RetryableException as RetryableException
