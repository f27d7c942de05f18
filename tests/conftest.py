pytest_plugins = ["tests.brokers.fixtures"]
