// What survives a reload, in IndexedDB: drafts by name, takes, and their sound piece by piece as it comes.
// Knows not what a draft or a take is for. Tells the other tabs when takes change.

const opening = new Promise((resolve, reject) => {
  const request = indexedDB.open("studio", 1);
  request.onupgradeneeded = () => {
    const drafts = request.result.createObjectStore("drafts", { keyPath: ["name", "tab"] });
    drafts.createIndex("name", "name");
    drafts.createIndex("saved", "saved");
    request.result.createObjectStore("takes", { keyPath: "id" }).createIndex("view", "view");
    request.result.createObjectStore("pieces"); // by [take, index]
  };
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});
opening.catch(() => {}); // each use says it again

/** Runs one request in a transaction and resolves once it is on disk. */
async function run(names, mode, act) {
  const database = await opening;
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(names, mode);
    const request = act(transaction);
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}

const TAB = "studio.tab";
const LEFT = "studio.left";
const WEEK = 7 * 24 * 3600 * 1000;
const left = sessionStorage[LEFT];
const before = left ?? sessionStorage[TAB];
/**
 * This tab, also after a reload: two tabs with two texts must not overwrite each other. A duplicate has the first tab's
 * sessionStorage, so only a page that was left hands its name on. (Web Locks would tell too, but not over plain HTTP.)
 */
const tab = left ?? String(Math.random()).slice(2);

function stay() {
  sessionStorage[TAB] = tab;
  sessionStorage.removeItem(LEFT);
}
stay();
addEventListener("pageshow", stay); // also of a page that the browser kept to go back to
addEventListener("pagehide", () => (sessionStorage[LEFT] = tab));

// A duplicate, or a tab that crashed, goes on from what is kept under the name before. To be open is to be in use.
run("drafts", "readwrite", (db) => {
  const drafts = db.objectStore("drafts");
  drafts.getAll().onsuccess = ({ target: { result } }) => {
    for (const draft of result) if (draft.tab === before) drafts.put({ ...draft, tab, saved: Date.now() });
  };
}).catch(() => {}); // each use says it again

const piecesOf = (id) => IDBKeyRange.bound([id, 0], [id, Infinity]);
const tabs = new BroadcastChannel("studio");

export const store = {
  /** This tab's draft or, in a new tab, the latest one. @returns {Promise<any>} undefined where there is none */
  async draft(name) {
    const all = await run("drafts", "readonly", (db) => db.objectStore("drafts").index("name").getAll(name));
    all.sort((a, b) => Number(b.tab === tab) - Number(a.tab === tab) || b.saved - a.saved);
    return all[0]?.value;
  },

  /** The drafts of that name that other tabs have. @returns {Promise<any[]>} */
  async draftsElsewhere(name) {
    const all = await run("drafts", "readonly", (db) => db.objectStore("drafts").index("name").getAll(name));
    return all.filter((draft) => draft.tab !== tab).map(({ value }) => value);
  },

  /** Replaces this tab's draft; those of that name that other tabs left a week ago go. */
  saveDraft: (name, value) =>
    run("drafts", "readwrite", (db) => {
      const drafts = db.objectStore("drafts");
      drafts.put({ name, tab, saved: Date.now(), value });
      drafts.index("saved").openKeyCursor(IDBKeyRange.upperBound(Date.now() - WEEK)).onsuccess = ({ target: { result } }) => {
        if (!result) return;
        if (result.primaryKey[0] === name) drafts.delete(result.primaryKey); // others may be the last of their views
        result.continue();
      };
    }),

  /** The takes of a view, oldest first. */
  async takes(view) {
    const found = await run("takes", "readonly", (db) => db.objectStore("takes").index("view").getAll(view));
    return found.sort((a, b) => a.created - b.created);
  },

  async saveTake(take) {
    await run("takes", "readwrite", (db) => db.objectStore("takes").put(take));
    tabs.postMessage({ view: take.view });
  },

  async deleteTake(take) {
    await run(["takes", "pieces"], "readwrite", (db) => {
      db.objectStore("pieces").delete(piecesOf(take.id));
      db.objectStore("takes").delete(take.id);
    });
    tabs.postMessage({ view: take.view });
  },

  savePiece: (id, index, samples) => run("pieces", "readwrite", (db) => db.objectStore("pieces").put(samples, [id, index])),

  /** @returns {Promise<Int16Array[]>} */
  pieces: (id) => run("pieces", "readonly", (db) => db.objectStore("pieces").getAll(piecesOf(id))),
};

/**
 * A function that keeps a draft: at once, and of what changes while that is written only the last state. It resolves
 * once all is on disk, and raises what the database raises.
 */
export function keeper(name, state) {
  let writing = null;
  let again = false;
  async function write() {
    try {
      do {
        again = false;
        await store.saveDraft(name, state());
      } while (again);
    } finally {
      writing = null;
    }
  }
  return () => {
    again = true;
    return (writing ??= write());
  };
}

/** Calls back when another tab has changed takes of a view. */
export function onOtherTab(view, changed) {
  tabs.addEventListener("message", ({ data }) => data.view === view && changed());
}
