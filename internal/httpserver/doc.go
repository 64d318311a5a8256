// Package httpserver is how every service speaks HTTP: a router whose every answer is a JSON object, one shape of
// error, request ids, health and metrics endpoints, and a server with time limits that drains before it stops.
package httpserver
