"""The HTTP interface: routes, schemas, admission of requests, error answers and the page."""
