"""What a relay tells about itself in numbers (R7.2-5).

``catalogue`` is the table of metrics, ``local`` what they are read from in this process, ``snapshot`` the numbers as plain data
that can be added up over processes, ``exposition`` their text for scrapers, ``vitals`` what is measured of the process itself.
"""
