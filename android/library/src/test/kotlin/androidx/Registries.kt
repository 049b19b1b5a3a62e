// What Robolectric tells of a test's instrumentation, heard by nobody: classes that it names and that only Google's repository has.
package androidx.test.platform.app

import android.app.Instrumentation
import android.os.Bundle

object InstrumentationRegistry {
    @JvmStatic fun registerInstance(instrumentation: Instrumentation?, arguments: Bundle?): Unit = Unit
}
