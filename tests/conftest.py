pytest_plugins = ["tests.brokers.fixtures", "tests.bridges.fixtures"]
