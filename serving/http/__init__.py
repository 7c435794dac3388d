"""Serve HTTP: from an ASGI call to the handler of its address, and back.

In reading order: `routes` (the table of all routes, and their handlers), `application` (routing,
authentication, errors), `bounds` (memory, time and client of a request), `bodies` (limits and
encoding of bodies), `compression` (gzip and deflate), `decoder` (a process for large JSON and image
files), `forms` (what it does for forms).
"""
