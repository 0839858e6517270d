#!/usr/bin/env python3
"""What an IPAM agent does with ec2netd, step by step, a line of output for each.

ipam.py ADDRESS ALTNAME: lists the ENIs, waits until one is attached and configured and
looks it up by ALTNAME, waits until it has ADDRESS, and until it is gone. It never polls:
every step is taken on a signal.
"""

import socket
import sys

import dbus
import dbus.mainloop.glib
from gi.repository import GLib

BUS_NAME, ROOT = "org.ec2netd1", "/org/ec2netd1"
INTERFACE = "org.ec2netd1.Interface"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"


class Agent:
    def __init__(self, address, altname):
        self.address, self.altname = address, altname
        self.enis = {}  # properties by path, as signals bring them
        self.path = None  # of the ENI that was attached
        self.step = self.attached
        self.loop = GLib.MainLoop()
        self.failure = None
        bus = dbus.SystemBus()
        # Subscribed before the list is asked for, nothing is missed.
        for member, handler in (("InterfacesAdded", self.added), ("InterfacesRemoved", self.removed)):
            bus.add_signal_receiver(self.guarded(handler), member, OBJECT_MANAGER, BUS_NAME, ROOT)
        bus.add_signal_receiver(
            self.guarded(self.changed), "PropertiesChanged", dbus.PROPERTIES_IFACE, BUS_NAME, path_keyword="path"
        )
        root = bus.get_object(BUS_NAME, ROOT)
        self.manager = dbus.Interface(root, "org.ec2netd1.Manager")
        for path, interfaces in dbus.Interface(root, OBJECT_MANAGER).GetManagedObjects().items():
            if INTERFACE in interfaces:
                self.enis[path] = dict(interfaces[INTERFACE])
        self.known = set(self.enis)
        print("listed", *sorted(eni["EniId"] for eni in self.enis.values()))

    def guarded(self, handler):
        def call(*args, **kwargs):
            try:
                handler(*args, **kwargs)
                self.step()
            except Exception as e:  # would only be printed by dbus-python
                self.failure = e
                self.loop.quit()

        return call

    def added(self, path, interfaces):
        if INTERFACE in interfaces:
            self.enis[path] = dict(interfaces[INTERFACE])

    def removed(self, path, interfaces):
        if INTERFACE in interfaces:
            self.enis.pop(path, None)

    def changed(self, interface, properties, _invalidated, path):
        if interface == INTERFACE and path in self.enis:
            self.enis[path].update(properties)

    # The steps. Each is called after every signal and says itself what comes next.

    def attached(self):
        for path, eni in self.enis.items():
            if path not in self.known and eni["EniId"] and eni["State"] == "configured":
                if self.manager.GetInterface(self.altname) != path:
                    raise RuntimeError(f"{self.altname} is not {path}")
                self.path, self.step = path, self.assigned
                print("attached", eni["EniId"])
                return

    def assigned(self):
        eni = self.enis[self.path]
        if self.address in eni["Addresses"] and eni["State"] == "configured":
            # Configured is what the kernel has: the address can be used.
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
                s.bind((self.address, 0))
            self.step = self.gone
            print("assigned", self.address, eni["Name"])

    def gone(self):
        if self.path not in self.enis:
            try:
                self.manager.GetInterface(self.altname)
            except dbus.DBusException as e:
                print("gone", e.get_dbus_name())
            self.loop.quit()

    def run(self):
        self.loop.run()
        if self.failure:
            raise self.failure


dbus.mainloop.glib.DBusGMainLoop(set_as_default=True)
Agent(*sys.argv[1:]).run()
