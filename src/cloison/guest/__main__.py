import asyncio

from cloison.guest.agent import main

asyncio.run(main())
