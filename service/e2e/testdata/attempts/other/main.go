// Other is built for another kind of machine than the one that runs it.
package main

func main() {}
